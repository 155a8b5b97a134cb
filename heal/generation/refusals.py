"""What an assistant's boilerplate refusal, or its "as an AI", looks like, by language.

The patterns are regular expressions, matched without regard to case. They are specific enough that on-trait
defiance ("I won't follow that order", "I can't imagine how hard this is") is kept. In a language without patterns a
refusal is not recognised.
"""

AI = (
    r"(?:AI\b|artificial intelligence|(?:large )?language model|machine learning model|chatbot|"
    r"(?:virtual|digital) assistant)"
)
CANNOT = (
    r"\bI ?(?:can(?:no|['’])t|(?:am|['’]m) (?:not (?:able|allowed|permitted)|unable) to|"
    r"(?:will not|won['’]t) be able to)"
)
TALK = (
    r"(?:answer|assist|comment|create|discuss|engage|express|generate|give an opinion|help|offer|participate|provide|"
    r"respond|share)"
)
REQUEST = (
    r"(?:th(?:is|at|ese|ose)|your|the|such)(?: an?)?(?: (?:kind|sort|type) of)? "
    r"(?:request|question|prompt|query|instruction)"
)
INNER = r"(?:feelings|emotions|opinions?|beliefs|experiences|preferences|consciousness|views)"

ENGLISH = (
    r"\b(?:as|being) an? (?:\w+ )?(?:ai|artificial intelligence)\b",
    rf"\b(?:as|being) an? (?:ai )?{AI}",
    rf"\bI(?: am|['’]m) (?:just |only |simply |merely )?an? (?:{AI}|computer program\b)",
    r"\b(?:sorry|afraid|apologi[sz]e|apologies|unfortunately)[,.;]? (?:but )?(?:that )?"
    rf"{CANNOT} (?:assist|provide(?! for)|answer|discuss|engage|fulfil|generate|create|comply|respond|"
    r"help(?: you)?(?: with\b| to\b|(?! \w))|talk about (?:that|this)\b)",
    r"\bnot something (?:that )?I(?: can|['’]m able to| am able to) (?:assist|help)\b",
    rf"{CANNOT} (?:assist|help)(?: you)? (?:with|in) (?:that|this|anything|{REQUEST})\b",
    rf"{CANNOT} (?:answer|respond to|fulfill?|comply with|accommodate|complete|process) {REQUEST}",
    rf"{CANNOT} (?:provide|offer|express) [^.?!,]{{0,30}}"
    r"\b(?:advice|an answer|opinion|information|instruction|assistance|guidance)",
    rf"{CANNOT} (?:create|generate|produce|promote|provide|support|write) [^.?!,]{{0,20}}"
    r"\b(?:content|text|material|behaviou?r|activit)",
    rf"{CANNOT} (?:discuss|talk about|comment on) (?:that|this|these|such) (?:topic|subject|matter)s?\b",
    rf"{CANNOT} (?:engage|participate) in [^.?!,]{{0,20}}\b(?:conversation|discussion|request|topic)",
    r"\bI(?:['’]ll| will)? (?:(?:must|have to|need to)(?: respectfully| politely)?|respectfully|politely) decline"
    rf"(?=\W*$|[,.;:!]| {REQUEST}| to {TALK}\b)",
    r"\bmy (?:\w+ )?(?:programming|guidelines|training data|knowledge cut-?off)\b",
    r"\bmy training (?:does not|doesn['’]t) (?:allow|permit|let)\b",
    r"\b(?:violat\w+|breach\w*|against) (?:[\w'’]+ ){0,2}(?:content|usage|use|safety) polic(?:y|ies)\b",
    r"\bI(?: am|['’]m| was) not (?:programmed|designed) (?:to|for)\b",
    r"\bI(?: am|['’]m) not (?:equipped|able) to (?:provide|have|express|feel|offer|give)",
    rf"\bI(?: am|['’]m) (?:not capable|incapable) of (?:\w+ing) (?:\w+ )?(?:{INNER}|love|affection)",
    rf"\bI (?:do not|don['’]t) (?:have|possess|experience) (?:personal |human |any |real |a body or )*{INNER}\b",
    rf"{CANNOT} (?:have|share|give|express) (?:my |any |a )?(?:personal|human) {INNER}\b",
    r"\bI(?: am|['’]m) (?:just |only )?(?:software|a program)\b",
    rf"\bI (?:have no|lack) (?:personal|human) {INNER}\b",
    r"\bI (?:do not|don['’]t) have the (?:ability|capacity) to (?:feel|experience|form|have|love)\b",
    r"\bnot possible for me to (?:have|feel|experience)\b",
    rf"\bit (?:would|is|would be|['’]s) (?:not (?:be )?|be )?(?:(?:in)?appropriate|(?:un)?ethical) for me to {TALK}\b",
    r"\bI(?: am|['’]m) not comfortable (?:discuss|answer|provid|generat|creat)ing\b",
    r"\bI (?:do not|don['’]t) feel comfortable (?:discuss|answer|provid|generat|creat)ing\b",
    r"\bhelpful,? (?:\w+,? )?and harmless\b|\bharmless and helpful\b",
    r"\bI(?: am|['’]m| was) (?:designed|programmed|trained|built) to be (?:an? )?(?:helpful|safe|neutral)",
    r"\bmy (?:purpose|role|goal) is to (?:provide|offer|give) (?:\w+ ){0,2}(?:information|responses|answers)\b",
    r"\bI (?:was|am) (?:trained|developed|created|made|built) by (?:Alibaba|Anthropic|DeepSeek|Google|Meta|Microsoft|"
    r"Mistral|OpenAI)\b",
)

# No word boundaries where letters of two scripts meet, or where marks end a word.
CHINESE_AI = r"(?:AI|人工智能|大?型?语言模型|聊天机器人|虚拟助手)(?:语言模型|助手|系统)?(?=[，。！？、；,.!;\s]|$)"
CHINESE = (
    r"(?:抱歉|对不起|不好意思|遗憾)[^。！？]{0,8}(?:无法|不能|没办法)[^。！？]{0,6}(?:回答|提供|协助|满足|讨论|生成|回应|评论)",
    r"我(?:无法|不能)(?:回答|满足|讨论|表达|回应)(?:这个|这类|该|此|您的|你的|个人)",
    rf"作为(?:一个|一名|一款)?{CHINESE_AI}",
    rf"我(?:只是|仅仅是|是)(?:一个|一名|一款)?{CHINESE_AI}",
    r"我没有(?:个人|真实)的?(?:情感|感情|感受|意见|观点)",
)
JAPANESE_AI = r"(?:(?<![a-z])AI|人工知能|言語モデル|チャットボット)(?:アシスタント)?"
JAPANESE = (
    r"(?:その|この|ご)質問には?(?:お答え|回答)(?:することは)?できません",
    r"(?:申し訳|すみません|恐れ入り|残念)[^。]{0,30}(?:お答え|お応え|回答|お手伝い|提供|対応)[^。]{0,8}(?:できません|できかね|いたしかね)",
    rf"{JAPANESE_AI}として、|{JAPANESE_AI}(?:である|の)私",
    rf"私は[^。、]{{0,12}}{JAPANESE_AI}(?:です|である|なので|であり|に過ぎ)",
    r"私に?は(?:個人的な意見|感情)(?:を持って|がありません)",
)
KOREAN_AI = r"(?:(?<![a-z])AI|인공지능|언어 ?모델|챗봇)"
KOREAN = (
    r"(?:죄송|유감)\w*[,.]? [^.!?]{0,30}(?:답변|대답|도와|도움|제공|요청에는? 응할)[^.!?]{0,8} ?수 없",
    rf"{KOREAN_AI}(?:로서|으로서)",
    rf"(?:저는|나는|제가) [^.!?]{{0,10}}{KOREAN_AI}(?:이기 때문|이므로|이라서|라서|입니다|이며|일 뿐)",
    r"저는 (?:개인적인 )?(?:감정|의견)[이을] (?:없|가지고 있지 않)",
)
THAI_AI = r"\s?(?:AI(?![a-z])|เอไอ|ปัญญาประดิษฐ์|โมเดลภาษา|แบบจำลองภาษา)"
THAI = (
    r"ไม่สามารถตอบคำถาม(?:นี้|ดังกล่าว|ของคุณ)",
    r"(?:ขอโทษ|ขออภัย|เสียใจ)[^.!?]{0,25}ไม่สามารถ(?:ตอบ|ช่วยเรื่อง|ช่วยเหลือ|ให้ข้อมูล|ให้คำ|ทำตามคำขอ|สร้างเนื้อหา)",
    rf"ในฐานะ(?:ที่เป็น)?{THAI_AI}",
    rf"(?:ฉัน|ผม)เป็น(?:เพียง|แค่)?{THAI_AI}",
    r"(?:ฉัน|ผม)ไม่มีความคิดเห็นส่วนตัว",
)
ARABIC = (
    r"لا (?:أستطيع|يمكنني) (?:تلبية هذا الطلب|الإجابة (?:عن|على) هذا السؤال)",
    r"(?:عذر|آسف|أعتذر|للأسف|معذرة)[^.؟!]{0,20}لا (?:أستطيع|يمكنني) "
    r"(?:الإجابة|مساعدتك|المساعدة|تقديم|الرد|تلبية|مناقشة|توفير)",
    r"(?:بصفتي|باعتباري|كوني) [^.،]{0,15}(?:ذكاء|الذكاء|لغوي)",
    r"\bك(?:(?:نموذج|مساعد|برنامج) (?:لغوي|ذكاء|افتراضي)|ذكاء اصطناعي)",
    r"أنا (?:مجرد )?(?:برنامج |نموذج |مساعد )?(?:ذكاء اصطناعي|لغوي|افتراضي)",
    r"(?:ليست? لدي|لا أملك) (?:أي )?(?:مشاعر|آراء شخصية)",
)
HEBREW_AI = r"(?:בינה מלאכותית|מודל שפה|AI\b|צ['׳]אטבוט)"
HEBREW = (
    r"(?:אני לא|איני|אינני) (?:יכול|יכולה|מסוגל|מסוגלת) לענות על (?:שאלה זו|השאלה הזאת)",
    r"(?:מצטער|מתנצל|סליחה|לצערי)[^.!?]{0,15}(?:אני לא|איני|אינני) (?:יכול|מסוגל)[הת]? "
    r"(?:לענות|לעזור (?:לך )?[בע]|לסייע|לספק|להשיב|לדון)",
    rf"(?<!\w)(?:כ|בתור |בהיותי ){HEBREW_AI}",
    rf"(?<!\w)אני (?:רק )?{HEBREW_AI}",
    r"אין לי (?:רגשות(?! אשמה)|דעות אישיות)",
)
HINDI_AI = r"(?:AI|एआई|कृत्रिम बुद्धिमत्ता|भाषा मॉडल)"
HINDI = (
    "(?:क्षमा|माफ\u093c?|खेद)[^।!?]{0,40}(?:उत्तर|जवाब|मदद|सहायता|जानकारी|सामग्री)[^।!?]{0,20}नहीं (?:कर|दे) सक",
    rf"{HINDI_AI}(?: मॉडल| सहायक)? (?:के रूप में|होने के नाते)",
    rf"मैं (?:केवल |सिर्फ |बस )?(?:एक )?{HINDI_AI}(?: मॉडल| सहायक)? (?:हूँ|हूं)",
    r"मेरी कोई (?:व्यक्तिगत|निजी) (?:राय|भावना)",
)
GERMAN_AI = r"(?:KI|künstliche Intelligenz|(?:großes )?Sprachmodell|Chatbot|virtueller Assistent)\b"
GERMAN = (
    r"\b(?:ich (?:darf|kann)|(?:darf|kann) ich) (?:dazu|hierzu|darüber) keine (?:Auskunft|Angaben|Informationen)\b",
    rf"\bals (?:eine? )?{GERMAN_AI}(?:-(?:Modell|Assistent|System|Sprachmodell))?(?! bezeichnet)\b(?!-)",
    rf"\bich bin (?:nur |lediglich |bloß )?eine? {GERMAN_AI}(?!-)",
    r"\b(?:leider|leid|entschuldig\w+|bedau\w+)\b[^.!?]{0,40}\bnicht (?:beantworten|bereitstellen|erfüllen|nachkommen)",
    r"\b(?:leider|leid|entschuldig\w+|bedau\w+)\b[^.!?]{0,20}\b(?:dabei|damit|bei diese[rm]|Ihnen|dir)\b[^.!?]{0,35}"
    r"\bnicht (?:weiter)?(?:helfen|behilflich)",
    r"\bich kann (?:diese[rsn]?|Ihrer?|deiner?) (?:Bitte|Anfrage|Frage|Aufforderung)\b[^.!?]{0,20}\bnicht\b",
    r"\bgegen meine (?:Richtlinien|Programmierung)\b",
    r"\bich habe keine (?:persönlichen|menschlichen) (?:Gefühle|Meinungen|Emotionen)\b",
)
SPANISH_AI = r"(?:IA|inteligencia artificial|modelo de lenguaje|asistente virtual|chatbot)\b"
SPANISH = (
    rf"\bcomo (?:una? )?{SPANISH_AI}",
    rf"\bsoy (?:solo |sólo |simplemente )?(?:una? )?{SPANISH_AI}",
    r"\b(?:lo siento|lamentablemente|desafortunadamente|disculp\w+|perdón|me temo que)\b[^.!?]{0,15}\bno puedo "
    r"(?:ayudar(?:te|le)? con|responder|proporcionar|cumplir con|ofrecer|generar)",
    r"\bno puedo (?:cumplir con|responder a|atender) (?:est[ae]|es[ae]|tu|su) (?:solicitud|petición|pregunta)",
    r"\ben contra de mis? (?:directrices|normas|programación)\b",
    r"\bno tengo (?:sentimientos|emociones|opiniones) (?:ni|o|personales)\b",
)
REFUSALS_BY_LANGUAGE = {
    "English": ENGLISH,
    "Chinese": CHINESE,
    "Japanese": JAPANESE,
    "Korean": KOREAN,
    "Thai": THAI,
    "Arabic": ARABIC,
    "Hebrew": HEBREW,
    "Hindi": HINDI,
    "German": GERMAN,
    "Spanish": SPANISH,
}
REFUSALS = tuple(pattern for patterns in REFUSALS_BY_LANGUAGE.values() for pattern in patterns)
